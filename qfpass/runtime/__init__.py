"""What a compiled decoder is at run time: sessions, the decoder that reads into them, the model around it."""
