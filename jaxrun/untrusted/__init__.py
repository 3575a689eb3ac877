"""Work on what others wrote: confined processes, accounts of other users, bounded patterns."""
