"""Run the Python example of a README file in the working folder."""

import re
import sys
from pathlib import Path

if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    exec(compile(code, sys.argv[1], "exec"), {"__name__": "__main__"})
