from hooks import *
