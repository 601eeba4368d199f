# Sourced by demo.sh and test.sh with the project as the current folder: puts a virtual environment with the versions of
# constraints.txt first on PATH, and makes it when there is none or when what it was made from has changed.
# Usage: . launch/environment.sh '' or . launch/environment.sh '[deepspeed,quantization,test]'

extras=$1
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: Softlaunch needs Python 3.10 or newer; $python is $("$python" --version). Set PYTHON to a newer one." >&2
    exit 2
fi
wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
stamp=".venv/installed$extras"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing into .venv (about two minutes)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras"
    printf '%s' "$wanted" > "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
