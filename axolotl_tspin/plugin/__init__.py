"""What Axolotl calls, under Axolotl's names for the files."""
