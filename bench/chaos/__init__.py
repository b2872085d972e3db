"""Fault injection: the job under what real machines do, compared row by row with the undisturbed one."""
