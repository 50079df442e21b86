"""What is true of SecuriFile, sentence by sentence."""
