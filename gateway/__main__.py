from gateway.cli import main

if __name__ == "__main__":  # a spawned worker also imports this module, under another name
    raise SystemExit(main())
