# Redis with its file in a folder of its own user's, so that it never runs as root.
FROM redis:7
RUN install -d -o redis -g redis /aof
WORKDIR /aof
USER redis
# noeviction: what is full must say so; an evicted batch would only be computed later.
CMD ["redis-server", "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--dir", "/aof"]
