#!/usr/bin/env bash
# Finds a Chromium for the tests of the page that `altojax serve` shows; where there is none, installs Debian's as root.
set -euo pipefail

find_browser() {
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name"; then
      return
    fi
  done
  return 1
}

if found=$(find_browser); then
  echo "make_browser_env: found $found"
  exit 0
fi
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "make_browser_env: no chromium on PATH, expected one (on Debian, as root: apt-get install chromium)" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium >/dev/null
installed=$(find_browser)
echo "make_browser_env: installed $installed"
