"""What compares and shows: the bench, replays against live engines, the demo, validation."""
