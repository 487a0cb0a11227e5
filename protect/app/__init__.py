"""The web page `protect-app`: the same functions as the commands, for a browser on the same computer.

`desk` keeps a visitor's files, `running` does work beside the page, `wishes` turns words into settings,
`views` draws what is shown; these know nothing of gradio. `page` and the `*_tab` modules lay it out, `server`
and `guard` keep it to this computer.
"""
