"""Files that people look at or listen to: sheets, plots, spectrograms, pages."""
