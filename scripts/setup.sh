# Sourced by the scripts beside it: makes sure that Node, the Debian packages and the npm packages are there, and builds.
# Everything it says goes to stderr; standard output belongs to the command that follows.

say() { printf 'certpeer: %s\n' "$*" >&2; }
fail() {
  say "$1"
  exit "${2:-1}"
}

require_node() {
  command -v node >/dev/null 2>&1 || fail 'Node.js is missing; install Node.js 20.19 or later and npm, then run this again' 7
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    fail "Node.js $(node --version) is too old; install 20.19 or later, then run this again" 7
  command -v npm >/dev/null 2>&1 || fail 'npm is missing; install it beside Node.js, then run this again' 7
}

# require_debian PROGRAM=PACKAGE ... : installs the packages whose program is missing. Needs root; says what it does.
require_debian() {
  local pair program package missing=() path="$PATH:/usr/sbin:/sbin"
  for pair in "$@"; do
    program=${pair%%=*}
    package=${pair#*=}
    PATH="$path" command -v "$program" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    fail "these Debian packages are missing: ${missing[*]}; as root run: apt-get install --no-install-recommends ${missing[*]}" 7
  fi
  command -v apt-get >/dev/null 2>&1 || fail "these programs' packages are missing and there is no apt-get: ${missing[*]}" 7
  say "installing Debian packages: ${missing[*]}"
  # nginx would be started by its package; this project runs its own with its own configuration.
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2 2>&1 ||
    { apt-get update >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2; } ||
    fail 'apt-get could not install them; see its message above' 7
}

require_npm_packages() {
  local stamp=node_modules/.certpeer-lock
  if [ ! -f "$stamp" ] || ! cmp -s package-lock.json "$stamp"; then
    say 'installing npm packages'
    npm ci --no-fund --no-audit --loglevel=error >&2 || fail 'npm ci failed; see its message above' 7
    cp package-lock.json "$stamp"
  fi
}

# require_build src|all : builds when a source is newer than the last build of that kind.
require_build() {
  local stamp="dist/.built-$1" config=tsconfig.build.json sources=(src)
  if [ "$1" = all ]; then config=tsconfig.json sources=(src test scripts); fi
  if [ ! -f "$stamp" ] || [ -n "$(find "${sources[@]}" tsconfig*.json package-lock.json -newer "$stamp" -type f -print -quit)" ]; then
    say 'building'
    npx --no-install tsc -p "$config" >&2 || fail 'the build failed; see the messages above'
    touch "$stamp"
  fi
}

RUNTIME_PACKAGES=(nginx=nginx-light openssl=openssl ip=iproute2 wg=wireguard-tools setpriv=util-linux)
# Where the kernel has no WireGuard, the userspace implementation carries the packets.
if ! { [ -d /sys/module/wireguard ] || modinfo wireguard >/dev/null 2>&1; }; then
  RUNTIME_PACKAGES+=(wireguard-go=wireguard-go)
fi
TEST_PACKAGES=(curl=curl ping=iputils-ping nft=nftables wireguard-go=wireguard-go)
