"""Save a workspace of Weights & Biases that shows the certificates of a project's runs.

    pip install wandb-workspaces
    python experiments/wandb_workspace.py ENTITY PROJECT

It needs an account, because only the server keeps workspaces.
"""

import argparse

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

__all__ = ["workspace"]


def workspace(entity: str, project: str, name: str = "certificate") -> ws.Workspace:
    """A workspace with the alignment loss under its threshold, the margins, the verdict and the pictures.

    Args:
        entity: user or team.
        project: project of the runs.
        name: name of the callback, the first part of its keys.
    """
    lines = {
        "alignment loss under the teacher information": ("alignment_loss", "teacher_information"),
        "margin and its lower bound": ("margin", "margin_lower"),
        "channel margin under the rate": ("channel_margin", "rate"),
        "certified": ("certified",),
    }
    plots = [
        wr.LinePlot(title=title, x="epoch", y=[f"{name}/{key}" for key in keys], title_y="nats" if keys[1:] else None)
        for title, keys in lines.items()
    ]
    pictures = [
        wr.MediaBrowser(media_keys=[key]) for key in (f"{name}/curve", "images/reconstructions", "images/samples")
    ]
    sections = [ws.Section("Certificate", [*plots, pictures[0]]), ws.Section("Pictures", pictures[1:])]
    for section in sections:
        section.is_open = True
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entity", help="user or team")
    parser.add_argument("project", help="of the runs")
    given = parser.parse_args()
    print(workspace(given.entity, given.project).save().url)
