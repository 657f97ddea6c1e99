"""What makes a report of a paper's items: the runs, their numbers beside the published ones, figures."""
