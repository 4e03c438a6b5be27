"""The guided set-up: from a device and an app registration to a profile that works."""
