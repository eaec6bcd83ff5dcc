"""Both ends of a chat, with the library `websockets`.

    chat.py serve COLOR COMPRESSION   prints its port; sends its color, and everything back that it gets
    chat.py talk PORT COMPRESSION     talks until it is told goodbye, comes back, and prints what it has seen
"""

import asyncio
import sys

import websockets

WORDS = ["hello", "", "x" * 125, "y" * 126, "z" * 65536, b"\x00" * 70000, ["frag", "ment", "ed"]]


async def serve(color, compression):
    async def answer(socket, _path=None):
        await socket.send(color)
        async for message in socket:
            await socket.send(message)

    server = await websockets.serve(answer, "127.0.0.1", 0, compression=compression)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.wait_closed()


async def chat(socket):
    print("color", await socket.recv(), flush=True)
    for word in WORDS:
        await socket.send(word)
        assert await socket.recv() == ("".join(word) if isinstance(word, list) else word)
    print("talked", [extension.name for extension in socket.extensions], flush=True)


async def talk(port, compression):
    url = f"ws://127.0.0.1:{port}/chat"
    async with websockets.connect(url, compression=compression) as socket:
        await chat(socket)
        await socket.wait_closed()
        print("closed", socket.close_code, socket.close_reason, flush=True)
    async with websockets.connect(url, compression=compression) as socket:
        await chat(socket)


if __name__ == "__main__":
    role, what, compression = sys.argv[1:]
    asyncio.run({"serve": serve, "talk": talk}[role](what, None if compression == "none" else compression))
