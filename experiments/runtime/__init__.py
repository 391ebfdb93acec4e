"""What every command runs on: machine, jobs, progress, folders of a run."""
