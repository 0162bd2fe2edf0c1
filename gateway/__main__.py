from gateway.cli import main

if __name__ == "__main__":  # a spawned worker imports this module too, under another name
    raise SystemExit(main())
