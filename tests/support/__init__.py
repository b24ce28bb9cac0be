"""What test modules share; they never import each other."""
