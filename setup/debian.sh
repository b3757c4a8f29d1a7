#!/bin/sh
# Install the Debian packages named in the given lists that are not there yet. Asks for sudo only where it is needed.
set -eu
missing=""
for package in $(sed 's/#.*//' "$@"); do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "Debian packages: all there."
    exit 0
fi
echo "Debian packages to install:$missing"
if [ "$(id -u)" -eq 0 ]; then
    sudo=""
elif command -v sudo >/dev/null; then
    sudo="sudo"
    echo "This needs the rights of root: sudo may ask for your password."
else
    echo "Please install them as root, then repeat: apt-get install$missing" >&2
    exit 1
fi
# A stale list of packages is renewed only when the first try fails: most machines need no update.
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # both are lists of words
$sudo apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 ||
    { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; }
