"""The `concur` command.

One module per command, named after it: `concur serve-sim` is `serve_sim_command` in
`serve_sim.py`. `app.COMMANDS` lists them; a module is imported only when its command runs.
"""
