"""The `hyperlapse` command: each command is a few lines over the packages below it.

It may import every package and is imported by none of them except `validation` (which drives whole runs). It must do
no work at import time: `hyperlapse --help` may not pay for pandas, pyarrow or an engine.
"""
