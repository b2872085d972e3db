# Redis with its file in a folder of its own user's, so that it never runs as root.
FROM redis:7
RUN install -d -o redis -g redis /aof
WORKDIR /aof
USER redis
# A full Redis must say so, not evict batches. It has no password, which protected mode would ask for: it is reachable
# in its own network alone.
CMD ["redis-server", "--dir", "/aof", "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", \
    "--protected-mode", "no"]
