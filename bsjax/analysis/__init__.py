"""Numbers about runs. Only the advice on the batch size trains, and briefly."""
