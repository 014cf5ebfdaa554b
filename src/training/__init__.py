"""How a network is trained: the nouns that the train stage and the experiments share."""
