"""Images, labels, overlays, plots and pages: what a person looks at."""
