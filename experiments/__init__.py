"""Programs over the library: flags, files, figures and printing."""
