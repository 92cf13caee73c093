"""What int8 networks cost in accuracy, whichever back end runs them."""
