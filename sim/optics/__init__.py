"""Light through the specimen: transmitted and fluorescence."""
