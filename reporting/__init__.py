"""What people look at: the screen, trackers, transcripts, the report."""
