import json


def compact(results):
    return json.dumps(results, indent=1) + "\n"


def write(results, folder):
    pass
