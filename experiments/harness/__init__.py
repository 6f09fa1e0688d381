"""What the scripts share: flags, runs, studies, pictures."""
