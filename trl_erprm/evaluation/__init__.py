"""Measures of a PRM and of the policy that it trains: accuracy of selection, tables and plots."""
