"""What a train step needs on hardware that is not attached: memory, time, communication."""
