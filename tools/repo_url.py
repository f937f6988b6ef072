"""Write the address of the repository everywhere.

python tools/repo_url.py https://github.com/OWNER/NAME

The address stands in _config.yml. Other files repeat it where a reader copies it or a service reads
it; a test keeps them in step. Until it is set, the owner is a name with a dot, which no GitHub
account can have, so that nobody can answer in its place.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(
    r"https://github\.com/(?P<owner>[A-Za-z0-9]([A-Za-z0-9_-]*))/(?P<name>[\w.-]+)"
)


def current() -> str:
    """The address that stands in _config.yml."""
    url: str = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    return url


def names(url: str) -> tuple[str, str, str]:
    """What files call the repository: OWNER/NAME, its website, and the website's folder there."""
    owner, name = url.split("/")[-2:]
    return f"{owner}/{name}", f"{owner.lower()}.github.io/{name}", f"/{name}/"


def listed() -> list[str]:
    """The path of every file that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return found.rstrip("\0").split("\0")


def files() -> dict[Path, str]:
    """The text of each of them."""
    texts = {}
    for name in listed():
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            texts[ROOT / name] = content.decode()
    return texts


def replace(url: str) -> None:
    pairs = list(zip(names(current()), names(url), strict=True))
    for path, text in files().items():
        changed = text
        for old, new in pairs:
            changed = changed.replace(old, new)
        if changed != text:
            path.write_bytes(changed.encode())
            print(f"  {path.relative_to(ROOT)}")


def main() -> None:
    url = " ".join(sys.argv[1:]).strip().removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        sys.exit(f"{url!r} is not an address like https://github.com/OWNER/NAME")
    replace(url)


if __name__ == "__main__":
    main()
