# One image, a role per command: docker run certpeer ca --dir /var/lib/certpeer/ca, … server, … front, … gateway run
FROM node:20-bookworm-slim AS build
WORKDIR /opt/certpeer
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY tsconfig.json ./
COPY src ./src
RUN npx --no-install tsc -p tsconfig.json && npm prune --omit=dev --omit=optional

FROM node:20-bookworm-slim
# nginx for `front`, WireGuard's tools for `gateway` and `device`; the database is elsewhere (DATABASE_URL).
RUN apt-get update \
 && apt-get install -y --no-install-recommends iproute2 nginx-light openssl wireguard-go wireguard-tools \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 64220 certpeer \
 && useradd --system --uid 64220 --gid certpeer --home-dir /var/lib/certpeer --create-home --shell /usr/sbin/nologin certpeer
WORKDIR /opt/certpeer
COPY --from=build /opt/certpeer/package.json ./
COPY --from=build /opt/certpeer/node_modules ./node_modules
COPY --from=build /opt/certpeer/dist ./dist
COPY migrations ./migrations
COPY nginx ./nginx
COPY pki ./pki
USER certpeer
VOLUME /var/lib/certpeer
ENTRYPOINT ["node", "/opt/certpeer/dist/src/bin/certpeer.js"]
CMD ["--help"]
