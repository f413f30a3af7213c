"""The processes: camera, gateway, worker, viewer, and all of them in one."""
