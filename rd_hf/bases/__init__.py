"""The mathematics: from moments of hidden states to the bases of a nested embedding, in closed form."""
