# One image, a role per command: docker run IMAGE ca --dir /var/lib/certpeer/ca, … server, … front --with-nginx,
# … gateway run. Which role needs what: docs/operations.md, "The image".
FROM node:20-bookworm-slim AS build
WORKDIR /opt/certpeer
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY tsconfig.json tsconfig.build.json ./
COPY src ./src
RUN npx --no-install tsc -p tsconfig.build.json \
 && rm -f dist/.tsbuildinfo* \
 && npm prune --omit=dev --omit=optional

FROM node:20-bookworm-slim
# nginx for `front`, WireGuard's tools for `gateway` and `device`; the database is elsewhere (DATABASE_URL).
# wireguard-go wants its directory of sockets, and /run belongs to root.
RUN apt-get update \
 && apt-get install -y --no-install-recommends iproute2 nginx-light openssl wireguard-go wireguard-tools \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10220 certpeer \
 && useradd --uid 10220 --gid certpeer --home-dir /var/lib/certpeer --no-create-home --no-log-init \
      --shell /usr/sbin/nologin certpeer \
 && install -d -o certpeer -g certpeer -m 0700 /var/lib/certpeer /run/wireguard
WORKDIR /opt/certpeer
COPY --from=build /opt/certpeer/package.json ./
COPY --from=build /opt/certpeer/node_modules ./node_modules
COPY --from=build /opt/certpeer/dist ./dist
COPY migrations ./migrations
COPY nginx ./nginx
COPY pki ./pki
# The name in every document and message is a command here too.
RUN chmod 0755 dist/src/bin/certpeer.js && ln -s /opt/certpeer/dist/src/bin/certpeer.js /usr/local/bin/certpeer
USER certpeer
VOLUME /var/lib/certpeer
ENTRYPOINT ["certpeer"]
CMD ["--help"]
