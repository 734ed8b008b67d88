#!/bin/sh
# Makes the images that deploy/Dockerfile and docker-compose.yml start from, under the same tags, out of Debian's packages:
# for machines that can reach a Debian mirror and no image registry.
#
#   sudo deploy/base-images.sh
#
# Needs root, docker and debootstrap. Made are `debian:bookworm-slim` and the Prometheus of docker-compose.yml (Debian's
# version of it under that tag, which is enough to try the configuration). Not made are the Rust image, for which programs
# built with `cargo build --release` stand in (see deploy/Dockerfile), and Grafana, which Debian does not have.
# MIRROR is where the packages come from.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

# The image that a line `image: NAME:TAG` of docker-compose.yml names.
tag_of() {
    sed -n "s|^ *image: *\($1:[^ ]*\).*|\1|p" "$here/../docker-compose.yml" | head -n 1
}

# A minimal system with these packages in $work/$1.
bootstrap() {
    root=$work/$1
    packages=$2
    debootstrap --variant=minbase ${packages:+"--include=$packages"} bookworm "$root" "$mirror"
    # What only an installed system wants.
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/log/apt
    find "$root/usr/share/doc" -depth -type f ! -name copyright -delete
    rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/*
}

# import NAME TAG [CHANGE...]: the directory as an image.
import() {
    root=$work/$1
    tag=$2
    shift 2
    for change in "$@"; do
        set -- "$@" --change "$change"
        shift
    done
    tar --create --numeric-owner --directory "$root" . | docker import "$@" - "$tag"
}

bootstrap base ""
import base debian:bookworm-slim 'CMD ["bash"]'

prometheus=$(tag_of prom/prometheus)
bootstrap prometheus prometheus
mkdir -p "$work/prometheus/prometheus"
chown 65534:65534 "$work/prometheus/prometheus"
import prometheus "$prometheus" \
    'USER 65534' \
    'WORKDIR /prometheus' \
    'EXPOSE 9090' \
    'ENTRYPOINT ["/usr/bin/prometheus"]' \
    'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'

docker images
