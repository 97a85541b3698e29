"""What a run leaves behind for people to look at: tables and pictures; reads files, knows no trainer."""
