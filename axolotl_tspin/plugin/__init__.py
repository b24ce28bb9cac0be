"""The plugin that Axolotl calls; files have Axolotl's names."""
