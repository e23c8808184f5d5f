"""ConVIRT, VSE++ and DSVE: the systems that the GLoRIA paper compares with, as a plugin."""
