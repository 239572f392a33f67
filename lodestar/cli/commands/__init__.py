"""The commands' arguments, one file per subject; what they do is imported when they are called."""
