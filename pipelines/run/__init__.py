"""What any script needs, whatever it does: command line, processes, signals, folders, progress, models."""
