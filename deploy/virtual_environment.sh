#!/bin/sh
# Makes a virtual environment. Debian ships python3 without ensurepip: root gets the missing package, others are told.
set -eu
python=$1 venv=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Cairn needs Python 3.11 or newer; $("$python" --version) was found. Name another with make PYTHON=..." >&2
    exit 1
}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
        echo "Python's venv module is missing: run 'sudo apt-get install python3-venv', then this again." >&2
        exit 1
    fi
fi
rm -rf "$venv"
"$python" -m venv "$venv"
