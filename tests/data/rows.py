"""A row that the tests of stepwise data share."""


def stepwise(**changes):
    return {"prompt": "2+3+4?", "completions": ["2+3=5", "5+4=9"], "labels": [0.9, 1.0], **changes}
