"""How a decode or an encode is run: the numbers of the whole picture, in bounded memory."""
