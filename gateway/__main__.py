from gateway.server.signals.first_process import end_at_sigterm

if __name__ == "__main__":  # a spawned worker also imports this module, under another name
    end_at_sigterm()  # before the imports, which take half a second
    from gateway.cli import main

    raise SystemExit(main())
