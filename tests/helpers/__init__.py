"""What tests share: runs of scripts, small models and data, a Hub on this machine."""
