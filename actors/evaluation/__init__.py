"""Measurements on held-out tasks: arms, intervals, judge metrics, exact ceilings and NashConv."""
