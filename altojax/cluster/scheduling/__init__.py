"""The inter-task scheduler (ALTO, "Inter-task scheduler"): which task gets which GPUs, and when.

Pure: no clock, file, process or model. Time comes with events; the same events give the same decisions.
"""
